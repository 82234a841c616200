"""A gateway in a process of its own, perhaps in another network namespace: a line of JSON for each event.

python -m tests.faults.far tcp://10.0.0.1:5570 tcp://10.0.0.1:5571 [SERVER PUBLIC SECRET]
"""

from __future__ import annotations

import json
import sys
import time

from inspectord.client import Back, Client, Gap, Inspected, Restart, Silence
from inspectord.keys import Keys


def main() -> None:
    verdicts, replay, *key = sys.argv[1:]
    with Client(verdicts, replay, connect_s=10.0, keys=Keys(*key) if key else None) as client:
        print(json.dumps({"event": "started"}), flush=True)
        for event in client:
            print(json.dumps(_table(event) | {"t_ns": time.monotonic_ns()}), flush=True)


def _table(event: Inspected | Gap | Restart | Silence | Back | object) -> dict[str, object]:
    table: dict[str, object] = {"event": type(event).__name__}
    match event:
        case Inspected(message):
            table |= {"camera": message.camera, "seq": message.seq, "historical": message.historical}
        case Gap(_, _, first, last):
            table |= {"first": first, "last": last}
    return table


if __name__ == "__main__":
    main()
