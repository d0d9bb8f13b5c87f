#!/usr/bin/env python3
"""Reads what `iris hist` writes with the public HdrHistogram for Python, and compares.

    pip install hdrhistogram
    iris hist --format json > dump.json
    iris hist dump.json --format hlog > dump.hlog
    iris hist diff dump.json dump.json --json > shown.json
    tools/check_histograms.py dump.json dump.hlog shown.json

Every row of the dump must decode to as many values as it says; the interval log must give the same
histograms; and the percentiles that `iris hist` shows must be those that this library finds, within one
bucket and one place in the order of values, which libraries round differently. Prints one line for each stage; exit code 1 if anything differs.
"""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}
# Two libraries may take the two ends of a bucket, whose width is at most one percent.
TOLERANCE = 0.011


def by_stage(dump):
    stages = {}
    for row in dump["histograms"]:
        histogram = HdrHistogram.decode(row["hdr"])
        found = histogram.get_total_count()
        if found != row["count"]:
            sys.exit(f"{row['stage']}: {row['count']} values are said, {found} found")
        if row["stage"] in stages:
            stages[row["stage"]].add(histogram)
        else:
            stages[row["stage"]] = histogram
    return stages


def of_log(path):
    reader = HistogramLogReader(path, HdrHistogram(1, 3_600_000_000_000, 3))
    stages = {}
    while (interval := reader.get_next_interval_histogram()) is not None:
        stages[interval.get_tag()] = interval
    reader.close()
    return stages


def near(a, b):
    return abs(a - b) <= TOLERANCE * max(a, b, 100)


def is_between(histogram, percentile, value):
    place = 100.0 / histogram.get_total_count()
    low = histogram.get_value_at_percentile(max(percentile - place, 0.0))
    high = histogram.get_value_at_percentile(min(percentile + place, 100.0))
    return low * (1 - TOLERANCE) - 1 <= value <= high * (1 + TOLERANCE) + 1


def main():
    dump_path, log_path, shown_path = sys.argv[1:]
    with open(dump_path, encoding="utf-8") as file:
        dumped = by_stage(json.load(file))
    with open(shown_path, encoding="utf-8") as file:
        shown = {stage["stage"]: stage["a"] for stage in json.load(file)["stages"]}
    logged = of_log(log_path)
    if not dumped or set(dumped) != set(logged) or set(dumped) != set(shown):
        sys.exit(f"stages differ: {sorted(dumped)} {sorted(logged)} {sorted(shown)}")
    for stage, histogram in dumped.items():
        count = histogram.get_total_count()
        if not count == logged[stage].get_total_count() == shown[stage]["count"]:
            sys.exit(f"{stage}: the counts differ")
        if count == 0:
            print(f"{stage}: empty")
            continue
        for name, percentile in PERCENTILES.items():
            here = histogram.get_value_at_percentile(percentile)
            there = logged[stage].get_value_at_percentile(percentile)
            told = shown[stage][name]
            if not near(here, there) or not is_between(histogram, percentile, told):
                sys.exit(f"{stage}: {name} is {here}, {there} in the log, and {told} was shown")
        print(f"{stage}: {count} values, p50 {histogram.get_value_at_percentile(50.0)} ns")


if __name__ == "__main__":
    main()
