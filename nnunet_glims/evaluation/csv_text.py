"""Tables as CSV that spreadsheets show as they are."""

from __future__ import annotations

from typing import Any

import pandas as pd

_BEGIN_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV. Texts that spreadsheets would compute as a formula begin with an apostrophe, as they ask for."""
    shown = table.rename(columns=_no_formula)
    texts = [place for place, kind in enumerate(shown.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    for place in texts:
        shown.isetitem(place, shown.iloc[:, place].map(_no_formula))
    return shown.to_csv(index=False)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(_BEGIN_A_FORMULA) else value
