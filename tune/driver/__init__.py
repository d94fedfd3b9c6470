"""The driver of a sweep: the only folder that imports Ray.

What becomes of one report, in Ray's order of calls (tests/test_ray_compat.py asserts it):

 1. worker.TrialReports.send       trial's process, background thread: ray.tune.report(report, checkpoint)
 2. (Ray)                          copies the checkpoint into the run's storage, then hands the report to the driver
 3. sweep_stopper.SweepStopper     __call__: counts GPU seconds, notes a full disk and the best finished score
 4. rung_scheduler.RungScheduler   on_trial_result, in this order:
      recorder.Recorder.write        appends to metrics.csv, case_scores.csv, TensorBoard and stdout.log; the first
                                     report of a process says where it runs: an event
      Journal.record                 score, epoch and checkpoint of the trial
      RungScheduler.decide           STOP, CONTINUE or PAUSE, in the journal before it is returned; a stop is an event
      on_report                      the caller's hook of launch and resume
 5. searcher.OptunaSearcher        on_trial_result, only after CONTINUE: does nothing
 6. watchdog.HangWatchdog          on_trial_result, a callback: the trial has reported in time
 7. CONTINUE                       `send` returns in the trial's process, which trains on
    STOP, PAUSE, or its end        `send` raises SystemExit; OptunaSearcher.on_trial_complete reports to Optuna,
                                   then Recorder.on_trial_complete announces the end
 8. on_step_end, stop_all          the screen, RUN/live.json, the report's process, a sync of RUN/best in background,
                                   hung trials; the budgets

When all trials that are left pause at a rung, the Tuner ends; OptunaSearcher.promote decides on them, and a new Tuner
trains the best ones on from their checkpoints (sweep.run_attempt).

Between two reports a trial sends its progress as datagrams, which live_recorder.LiveRecorder reads from its
progress_board.ProgressBoard.

When a trial fails, Ray decides whether to restart it (max_failures), then calls RungScheduler.on_trial_error. If it is
not restarted, OptunaSearcher.on_trial_complete(error=True) and Recorder.on_trial_error follow. A trial that is lost
with its node is always restarted (controller_compat.py).
"""

from tune.driver.cluster.home import ensure_home

ensure_home()  # before any module of this folder imports Ray
