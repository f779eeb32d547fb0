"""One measurement in a process of its own: a plan and a job come in as JSON, the measurement goes out."""

from __future__ import annotations

import json
import sys

from probe.benchmark.measuring import measure
from probe.benchmark.result import Job, Plan
from probe.errors import ProbeError


def main() -> None:
    """Read from standard input, print one line."""
    asked = json.load(sys.stdin)
    try:
        print(measure(Plan.model_validate(asked["plan"]), Job.model_validate(asked["job"])).model_dump_json())
    except ProbeError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
