"""Imported by multiprocessing's fork server, which must outlive the signals that stop a run.

A terminal or a scheduler sends them to all processes of a job. If the fork server died of
one, the processes that it started could no longer report that they have saved. Import this
nowhere else: it makes the importing process ignore these signals.
"""

import signal

from mobilenet_exp.machine.preemption import ASKING

for _number in ASKING:
    signal.signal(_number, signal.SIG_IGN)
