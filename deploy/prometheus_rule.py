"""Writes the alerts as a PrometheusRule, for clusters whose Prometheus is an operator's: the rules have one source."""

import argparse
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parent
RULES = DEPLOY / "prometheus" / "rules" / "hotslot.yaml"
OUTPUT = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = "# Made from deploy/prometheus/rules by `python -m deploy.prometheus_rule`; never edited by hand.\n"


def prometheus_rule() -> str:
    """The whole file."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "hotslot"},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    return HEAD + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


def main() -> int:
    """Write the file, or with `--check` tell that it is another one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the file is not current")
    is_current = OUTPUT.exists() and OUTPUT.read_text(encoding="utf-8") == prometheus_rule()
    if parser.parse_args().check:
        print("" if is_current else f"{OUTPUT}: run `python -m deploy.prometheus_rule`", file=sys.stderr)
        return 0 if is_current else 1
    OUTPUT.write_text(prometheus_rule(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
