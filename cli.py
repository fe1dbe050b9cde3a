"""Runs `mtlbench` from a checkout: `python cli.py run --method snip --dataset nyuv2`."""

from mtlprune_bench.commands import main

if __name__ == "__main__":
    main()
