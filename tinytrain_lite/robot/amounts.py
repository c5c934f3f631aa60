"""Numbers as a lab writes them, and pictures for log.html."""

from __future__ import annotations

import base64
import re

from robot.api import logger

_FACTORS = {"": 1, "b": 1, "k": 1e3, "kb": 1024, "m": 1e6, "mb": 1024 * 1024}
_STYLE = (
    "<style>text{font:13px sans-serif}.tick{fill:#555}.vertical{transform:rotate(-90deg);transform-box:fill-box;"
    "transform-origin:center}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}.limit{fill:none;stroke-width:2;"
    "stroke-dasharray:6 4}</style>"
)


def amount(text: object) -> float:
    """``70%`` is 0.7, ``128KB`` is 131072, ``1.5M`` is 1500000, ``42_000`` is 42000; all else raises ValueError."""
    match = re.fullmatch(r"([0-9][0-9,_]*(?:\.[0-9]+)?)\s*(%|[KM]?B?)", str(text).strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"'{text}' is not an amount; write for example 70%, 128KB, 1.5M or 42000")
    value = float(match[1].replace(",", "").replace("_", ""))
    return value / 100 if match[2] == "%" else value * _FACTORS[match[2].lower()]


def log_picture(svg: str) -> None:
    """Show an SVG in log.html. As an image of its own, so that the log's style sheet and the picture's do not mix."""
    styled = svg.replace(">", ">" + _STYLE, 1)
    encoded = base64.b64encode(styled.encode()).decode()
    logger.info(f'<img style="width:100%;max-width:60em" src="data:image/svg+xml;base64,{encoded}">', html=True)
