"""Everything with a name, from methods to runners. Installed as `mtlprune_bench.plugins`."""
