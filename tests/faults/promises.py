"""What the oracle holds the daemon to.

What is promised of every start of the daemon and every camera:

1. seq is 1, 2, 3, ... in the order of arrival, nothing missing, nothing twice.
2. Every header that the source handed out has exactly one verdict, in its order, with its own part, trigger,
   frame and encoder numbers and times. One exception: the header that a camera process was handing over when
   it was killed; then a camera_lost verdict stands at its place, unless that camera had not yet come back.
3. A verdict without a header is a camera_lost mark, at most one for each camera process.
4. PASS: the frame was whole, its inference ended with a finite score within the limit before the deadline,
   this verdict carries this score and this recipe, and the part is good in truth. REJECT: the same with a
   score over the limit. Everything else is NOT_INSPECTED, with a reason that fits.
5. A daemon that was asked to stop has decided every header of its cameras. One that was killed, or gave
   itself up, may take with it the end of each camera's row: headers without a verdict lie behind all that
   have one.
6. No part has a verdict of two starts of the daemon, and no two starts the same boot_id.
7. The journal has each published verdict as it was published, in order; after a kill, its end may lack.
8. Heartbeats come at least every heartbeat_gap_s while the daemon runs, from its first one on.
9. The client gives out every verdict once and in order, and a gap only where verdicts died with a daemon.
10. A GenTL camera's exposures each have one header, in order: whole ones one with their pixels, lost and
    incomplete ones one without, frames delivered twice only one. Two exceptions: ids that were lost before
    the first frame can't be known, and a process may end between two headers of one fetch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promises:
    """What holds under a fault; each False is an exception that docs/reliability.md states."""

    journal_complete: bool = True  # False: the disk fails, rows may lack (and are counted by the daemon)
    subscriber_complete: bool = True  # False: the recorder itself was cut off; gaps in seq are no violation
    client_gaps: bool = False  # True: the client may report gaps (the history was asked for too late)
    heartbeat_gap_s: float | None = 1.0  # None: not judged

    def relaxed_by(self, other: Promises) -> Promises:
        """What holds under both faults together."""
        gaps = (self.heartbeat_gap_s, other.heartbeat_gap_s)
        return Promises(
            self.journal_complete and other.journal_complete,
            self.subscriber_complete and other.subscriber_complete,
            self.client_gaps or other.client_gaps,
            None if None in gaps else max(gap for gap in gaps if gap is not None),
        )
