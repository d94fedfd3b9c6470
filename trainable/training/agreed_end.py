"""Ctrl-C and SIGTERM to processes that train together: all of them end at the same step."""

from __future__ import annotations

from types import FrameType
from typing import Self

import torch
from torch import Tensor

from trainable.core.ranks import gather, world_size
from trainable.core.signals import Handler, end_is_requested, handle_end_signals, restore_handlers


class AgreedEnd:
    """In this context a signal that asks one of several processes to end is noted, and ends all at the same step.

    A process that raised KeyboardInterrupt wherever it is would leave the others waiting for its part of a sum. For a
    process alone nothing is changed. Once the end is agreed, further signals are ignored: the launcher may send them
    while the last checkpoint is still being written.

    Attributes:
        requested: a signal has come to this process.
    """

    def __init__(self) -> None:
        self.requested = self.agreed = False
        self.handlers: dict[int, Handler] = {}
        self.unread: tuple[Tensor, torch.cuda.Event | None] | None = None

    def __enter__(self) -> Self:
        if world_size() > 1:
            self.handlers = handle_end_signals(self._note)
            self.requested |= end_is_requested()  # before there was this handler
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self.agreed:
            gather(None)  # until rank 0 has written all, as a launcher ends the others once one process has ended
        if not self.agreed:
            restore_handlers(self.handlers)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def add_step(self, requests: Tensor) -> None:
        """Note a step; on a GPU its requests are read by the next call, to avoid waiting for it.

        requests: the number of processes that request the end, a scalar that is the same in all of them.

        Raises:
            KeyboardInterrupt: if there were requests.
        """
        self.read()
        self.unread = (requests.to("cpu", non_blocking=True, copy=True), None)
        if not requests.is_cuda:
            self.read()
            return
        event = torch.cuda.Event()
        event.record()
        self.unread = (self.unread[0], event)

    def read(self) -> None:
        """Raise KeyboardInterrupt if there were requests in the last step too; on a GPU this waits for that step."""
        unread, self.unread = self.unread, None
        if unread is not None:
            requests, event = unread
            if event is not None:
                event.synchronize()
            self.end_if(requests.item() > 0)

    def end_if(self, requested: bool) -> None:
        """Raise KeyboardInterrupt if the processes have agreed to end. requested: the same in all of them."""
        if requested:
            self.agreed = True
            raise KeyboardInterrupt
