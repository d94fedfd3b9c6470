"""A command run by several processes that train together: one prints, and an error of one ends all with its message."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from trainable.core.logger import logger
from trainable.core.ranks import Launch, gather, is_lost_connection

FAILED = "failed"  # key of the store: how many processes have ended with an error
POLL_SECONDS = 0.5
INTERRUPTED = 130  # the exit code after Ctrl-C
GRACE_SECONDS = 20  # for a process to end by itself once another one has failed; torchrun kills it after 30


class LaunchedRank:
    """This process among those of a launch.

    Attributes:
        store: by which the processes find each other, to be used by `ranks.join`.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.world_size))
        self.own_failure = False

    def run(self, command: Callable[[], int]) -> NoReturn:
        """Run a command, which may use `ranks.join`, and end this process with its exit code.

        If the code is 0 it first waits for the others. If not, or for an exception, they end too, as they notice. Only
        rank 0 prints, except for errors: the first one of all processes is printed.
        """
        logger.addFilter(self._passes)
        threading.Thread(target=self._end_with_others, args=(self.store.clone(),), daemon=True).start()
        code = 1
        try:
            code = command()
            if not code:
                gather(None)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except SystemExit as error:  # of --help, or a flag without its value
            code = error.code if isinstance(error.code, int) else 2
        except BaseException as error:
            self._print_exception(error)
        if code:
            self._is_first_failure()
        sys.stdout.flush()
        sys.stderr.flush()
        # A regular exit would wait for sums that others take no part in any more, or for CUDA graphs that have sums.
        os._exit(code)

    def _print_exception(self, error: BaseException) -> None:
        """Print an exception that was not expected, if it is the first one of all processes."""
        if not self._is_first_failure():
            return
        traceback.print_exception(error)
        if is_lost_connection(error):
            reason = str(error).split(". This is")[0].splitlines()[0]
            logger.error(f"error: {reason}; another process of this training may have ended, perhaps killed")

    def _is_first_failure(self) -> bool:
        """Tell the others that this process has failed; return whether it is the first, or was so before."""
        if not self.own_failure:
            try:
                self.own_failure = self.store.add(FAILED, 1) == 1
            except RuntimeError:  # the process that has the store has ended, perhaps without a message
                self.own_failure = True
        return self.own_failure

    def _passes(self, record: logging.LogRecord) -> bool:
        """Return whether a message is printed; add the rank to errors of others than rank 0."""
        if record.levelno < logging.ERROR:
            return self.launch.rank == 0
        if self.launch.rank:
            record.msg = f"{record.msg} (process {self.launch.rank} of {self.launch.world_size})"
        return self._is_first_failure()

    def _end_with_others(self, store: dist.Store) -> None:
        """End this process some time after another one has failed, if it still waits for that one."""
        try:
            while not store.check([FAILED]):
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # the process that has the store has ended
            pass
        time.sleep(GRACE_SECONDS)
        os._exit(1)
