"""Faults on a real line: a daemon process, its camera processes, a subscriber, and an oracle that compares.

    line.py       Line: recipe, settings, start, kill, reload, orders to fail; Setup: what a fault needs of it
    inject/       on the PYTHONPATH of the daemon: scripted parts, and calls that fail on order
    recorder.py   what a PLC gateway would see: a plain subscriber, and the product's client
    evidence.py   the logs of all of them in one structure
    oracle.py     violations(evidence, promises): a pure function; the promises in words
    registry.py   Fault, fault(): faults by name; camera.py, producer.py, inference.py, daemon.py, clock.py,
                  storage.py, network.py register theirs when imported
    trial.py      one run: strikes on a line, then the oracle; one row of the table
    run.py        python -m tests.faults.run --list | --fault NAME --times 20 --seed 1 | --all | --pairs 200
    soak.py       python -m tests.faults.soak --minutes 30

A fault is one strike on a running line, and is over when the line inspects parts again:

    from tests.faults.registry import fault
    from tests.faults.line import Line, Setup

    @fault(recovers_s=3.0)                                     # more than that is a violation
    def camera_killed(line: Line, rng: random.Random) -> float | None:
        '''The camera process is killed (-9).'''               # its line in the table
        os.kill(line.camera_pid(), signal.SIGKILL)
        return line.flows(10)                                  # seconds to recover; None: not measured

    @fault(Setup(settings={"journal": {"quota_mb": 1}}), Promises(journal_complete=False))
    def disk_full(line, rng): ...

The runner starts a Line with the fault's Setup, strikes so many times on it with pauses of a random length,
stops the daemon with SIGTERM, and asks the oracle. A strike that raises (AssertionError and others) is a
violation as well, as is a daemon that does not run any more after it; what a strike starts or changes, it
undoes. In pairs, two faults strike the same line at the same moment from two threads: what a strike asserts
beyond the oracle holds only `if line.alone`, and it uses line.camera_pid(), line.flows() and line.ready(),
which wait. Where the daemon is killed or restarted, hold line.lock.

What a strike has to work with:

    line.inject("cam1", "next", "raise", times=1, kind="SourceError")   orders; taken once each
    order = line.hold("daemon", "start", "raise"); line.lift(order)     orders that stand
    line.carried_out(orders)       wait until they were taken
    line.kill(), line.stop(), line.restart(), line.reload(), line.signal(number)
    line.flows(timeout_s), line.ready(timeout_s), line.parts(count)
    line.recorder.state            the last heartbeat
    line.endpoints, line.state_dir, line.recipes, line.log(), line.folder, line.pid, line.camera_pid()

Points and actions are in inject/injected: camera.py (scripted line: open, next, die_handed), harvest.py
(GenTL producer: add_file, update, create, start, num_buffers, remote_device, add_callback, try_fetch, shot,
gone, idle, stop, destroy, reset), inference.py (start, wait, result, compile).

Parts carry their number in their pixels (inject/injected/parts.py), every fifth one is bad. The log of what
the source handed out and the log of finished inferences are written by the processes themselves, before the
product sees a frame and after it has a score.
"""
