"Step tables from which anomalies cannot be learned, and what is said of them."

from math import inf, nan

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce import learn_anomalies


def table() -> pd.DataFrame:
    counts = dict(n=30.0, n_err=0.0, n_lat=30.0, latency_us=3e6, tokens_in=0.0, tokens_out=0.0)
    return pd.DataFrame(dict(backend="a", start_s=np.arange(40.0) * 60, **counts))


@pytest.mark.parametrize("column", ["start_s", "n", "n_err", "n_lat", "latency_us", "tokens_out"])
@pytest.mark.parametrize("value", [nan, inf, None])
def test_a_number_that_is_none_is_named_with_its_rows_and_the_remedy(column, value):
    steps = table()
    steps.loc[[5, 9], column] = value
    with pytest.raises(ValueError, match=rf"column {column} .* 2 of 40 rows \(row 5, 9\): drop"):
        learn_anomalies(steps)


def test_a_text_is_no_number():
    with pytest.raises(ValueError, match=r"column n .* 40 of 40 rows \(row 0, 1, 2, 3, 4, …\)"):
        learn_anomalies(table().assign(n="many"))


@pytest.mark.parametrize("column", ["backend", "start_s", "n", "latency_us"])
def test_a_missing_column_is_named_with_the_remedy(column):
    with pytest.raises(ValueError, match=rf"lacks {column}; it has .*\. RequestLog\.steps"):
        learn_anomalies(table().drop(columns=column))


def test_a_whole_table_that_is_short_has_too_few_windows():
    assert learn_anomalies(table()) is None
