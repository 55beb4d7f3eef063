-- luacheck: globals rocks_provided
-- The configuration with which the Makefile runs luarocks: Debian's packages provide these rocks.
rocks_provided = { argparse = "0.7.1-1", ["lua-cjson"] = "2.1.0-1" }
