"""Draw the README's picture from the record of the demo.

tinytrain demo && python tests/bench/readme_figure.py build/demo/record.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from tinytrain_lite.charts import arena_map, standalone
from tinytrain_lite.files import write_text
from tinytrain_lite.record import load

OUTPUT = Path(__file__).parents[2] / "course" / "figures" / "arena_sparse.svg"

if __name__ == "__main__":
    (sparse,) = [m for m in load(Path(sys.argv[1])) if m.scheme == "sparse"]
    write_text(OUTPUT, standalone(arena_map(sparse)))
    print(OUTPUT)
