# make demo   shows orders that are committed, rolled back and delivered
# make demo-postgres  the same on a PostgreSQL server, which it starts and stops
# make test   runs every test; ends with `N passed, N failed`
# make torture  runs longer forms of the tests; ends with a table of losses, crashes and leaks
# make coverage  shows which lines of src/ and lua/ the tests run
# make docs   builds the reference and the pages: build/docs/index.html
# make bench  runs the benchmarks, each figure beside its baseline; also bench-bindings,
#             bench-copies, bench-lanes, bench-postgres, bench-processor, bench-publishers, bench-relay, bench-wake
# make rock   writes the source rock of the release: build/outbox-*.src.rock
# make        builds the rock into lua_modules; make extension builds the loadable extension alone
# make postgres  builds the rock outbox-postgres into lua_modules, too; make brokers those of the brokers

LUA = lua5.4
LUAROCKS = LUAROCKS_CONFIG=tools/luarocks.lua luarocks --lua-version 5.4
BUSTED = $(LUA) /usr/bin/busted
TREE = lua_modules

STRICT = -std=c11 -Wall -Wextra -Wpedantic -Werror
SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -fno-omit-frame-pointer
COVERAGE = -std=gnu11 -O0 -g -fPIC --coverage -fprofile-update=atomic # gnu11: ISO C has no exec
COVERED = $(patsubst %.c,build/coverage/%.o,$(1))
# On Debian, /usr/include/postgresql.
PQ_INCDIR = $(shell pg_config --includedir 2>/dev/null)
LUA_INCLUDES = $(shell pkg-config --cflags lua5.4 2>/dev/null || echo -I/usr/include/lua5.4)

CORE = $(filter-out src/sqlite/extension.c,$(wildcard src/*.c src/sqlite/*.c))
HEADERS = $(wildcard src/*.h src/sqlite/*.h)
# The rockspec lists the sources of the extension.
EXTENSION = $(shell sed -n '/outbox_sqlite/,/}/s/.*"\(src.*\.c\)".*/\1/p' outbox-scm-1.rockspec)
SHIM = $(filter-out src/lua/postgres.c,$(wildcard src/lua/*.c)) $(wildcard src/lua/*.h)
# The second engine, in a rock of its own. Nothing else here contains any of it.
POSTGRES = $(wildcard src/postgres/*.[ch]) src/lua/postgres.c
# The clients of brokers, each in a rock of its own.
BROKERS = amqp kafka mqtt nats redis
DESTINATIONS = $(wildcard src/destinations/*.[ch])
CORE_SPECS = $(wildcard spec/core/*.c)
C_FILES = $(CORE) src/sqlite/extension.c $(HEADERS) $(SHIM) $(POSTGRES) $(DESTINATIONS) $(CORE_SPECS) $(wildcard spec/core/*.h spec/fuzz/*.[ch] spec/support/*.c bench/*.c)
LUA_FILES = $(shell find lua examples bench spec -name '*.lua') tools/coverage tools/floors tools/links \
  tools/loops
LUA_PATHS = LUA_PATH="$(TREE)/share/lua/5.4/?.lua;;" LUA_CPATH="$(TREE)/lib/lua/5.4/?.so;;"
# The path of Lua 5.3 too, because Debian installs lua-redis only there.
OTHER_PATHS = LUA_PATH="$(TREE)/share/lua/5.4/?.lua;;/usr/share/lua/5.3/?.lua" \
  LUA_CPATH="$(TREE)/lib/lua/5.4/?.so;build/?.so;;"

build: $(TREE)/.built

postgres: $(TREE)/.built_postgres

brokers: $(TREE)/.built_brokers

demo:
	@tools/setup run
	@$(MAKE) --silent build
	@$(LUA_PATHS) $(LUA) examples/orders.lua

# The name of the folder is short, because a socket is in it.
demo-postgres:
	@tools/setup demo-postgres
	@$(MAKE) --silent postgres
	@folder=$$(mktemp -d /tmp/outbox.XXXXXX) && trap "tools/postgres stop $$folder" EXIT && \
	  url=$$(tools/postgres start $$folder) && $(LUA_PATHS) $(LUA) examples/orders.lua $$url

test:
	@tools/setup test
	@tools/test

torture:
	@tools/setup torture
	@tools/torture

# A spec runs as another user, who must be able to update the counts. Therefore umask and chmod.
coverage:
	@tools/setup test
	@mkdir -p build && tools/lsqlite3
	@$(MAKE) --silent build build/coverage/core_test build/coverage/lib/lua/5.4/outbox/core.so \
	  build/coverage/lib/lua/5.4/outbox_sqlite.so build/coverage/bin/outbox build/coverage.so support
	@rm -f build/coverage/lines $$(find build/coverage -name '*.gcda'); chmod -R a+w build/coverage
	@umask 0; $(call QUIETLY,build/coverage/core_test)
	@umask 0; export OUTBOX_TREE=build/coverage OUTBOX_LINES="$$PWD/build/coverage/lines" \
	  LUA_PATH="lua/?.lua;;" LUA_CPATH="build/?.so;;"; \
	  $(call QUIETLY,LUA_INIT="pcall(require, 'coverage')" $(BUSTED) --ignore-lua --output=TAP)
	@tools/coverage

docs:
	@tools/setup docs
	@rm -rf build/docs && ldoc --quiet --fatalwarnings .
	@$(LUA) tools/links
	@echo build/docs/index.html

bench: build build/baseline
	@$(LUA_PATHS) $(LUA) bench/compare.lua
	@$(LUA_PATHS) $(LUA) bench/processor.lua
	@$(LUA_PATHS) $(LUA) bench/wake.lua
	@$(LUA_PATHS) $(LUA) bench/lanes.lua

bench-copies bench-lanes bench-processor bench-relay bench-wake: bench-%: build build/baseline
	@$(LUA_PATHS) $(LUA) bench/$*.lua

bench-bindings: build build/baseline
	@tools/setup test
	@tools/lsqlite3
	@$(OTHER_PATHS) $(LUA) bench/bindings.lua

bench-postgres: postgres build/baseline_postgres build/delay
	@$(LUA_PATHS) $(LUA) bench/postgres.lua

bench-publishers: build brokers support
	@$(OTHER_PATHS) $(LUA) bench/publishers.lua $(ONLY)

# Shows the output of a command only if it fails.
QUIETLY = log=$$(mktemp) && { $(1) >$$log 2>&1 || { cat $$log; exit 1; }; } && rm $$log

# luarocks leaves its object files in the source tree.
ROCK_MAKE = $(call QUIETLY,$(LUAROCKS) make $(1) --tree $(@D) $(2)) && \
  rm -rf outbox src/*.o src/*/*.o

$(TREE)/.built: $(CORE) src/sqlite/extension.c $(HEADERS) $(SHIM) $(shell find lua -name '*.lua') bin/outbox outbox-scm-1.rockspec
	@$(call ROCK_MAKE,outbox-scm-1.rockspec) && touch $@

# After the other, because luarocks would compile some files twice at the same place.
$(TREE)/.built_postgres: $(TREE)/.built $(POSTGRES) outbox-postgres-scm-1.rockspec
	@$(call ROCK_MAKE,outbox-postgres-scm-1.rockspec,PQ_INCDIR=$(PQ_INCDIR)) && touch $@

# One rock after the other, likewise.
$(TREE)/.built_brokers: $(TREE)/.built $(DESTINATIONS) $(BROKERS:%=outbox-%-scm-1.rockspec)
	@$(foreach broker,$(BROKERS),$(call ROCK_MAKE,outbox-$(broker)-scm-1.rockspec) &&) touch $@

# The archive is beside the rock too, to be put where the rockspec's source.url says.
RELEASE = $(filter-out %-scm-1.rockspec,$(wildcard outbox-*.rockspec))
ARCHIVE = $(notdir $(shell sed -n 's/^  url = "\(.*\)",$$/\1/p' $(RELEASE)))
rock:
	@mkdir -p build
	@tar -czf build/$(ARCHIVE) --exclude='*.o' --exclude='*.so' --owner=0 --group=0 --sort=name \
	  --transform='s,^,$(ARCHIVE:.tar.gz=)/,' bin docs examples lua spec src tools bench .busted \
	  .luacheckrc .clang-format config.ld Makefile LICENSE *.md *.rockspec
	@rm -f build/$(RELEASE:.rockspec=.src.rock)
	@zip -qj build/$(RELEASE:.rockspec=.src.rock) $(RELEASE) build/$(ARCHIVE)
	@echo build/$(RELEASE:.rockspec=.src.rock)

SANITIZED = CFLAGS="$(STRICT) $(SANITIZE) -fPIC" LIBFLAG="-shared $(SANITIZE)"
build/sanitized/.built: $(TREE)/.built $(TREE)/.built_brokers
	@mkdir -p $(@D)
	@$(call ROCK_MAKE,outbox-scm-1.rockspec,$(SANITIZED))
	@$(foreach broker,$(BROKERS),$(call ROCK_MAKE,outbox-$(broker)-scm-1.rockspec,$(SANITIZED)) &&) touch $@

build/baseline: bench/baseline.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O2 bench/baseline.c -o $@ -lsqlite3

build/baseline_postgres: bench/postgres.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O2 $(addprefix -I,$(PQ_INCDIR)) bench/postgres.c -o $@ -lpq

build/delay: bench/delay.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O2 bench/delay.c -o $@

build/core_test: $(CORE) $(HEADERS) $(CORE_SPECS) $(wildcard spec/core/*.h)
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g -Isrc $(CORE) $(CORE_SPECS) -o $@ -lcmocka -lsqlite3 -lm

build/core_test_sanitized: build/core_test
	$(CC) $(STRICT) $(SANITIZE) -Isrc $(CORE) $(CORE_SPECS) -o $@ -lcmocka -lsqlite3 -lm

# The same with a newer SQLite, which tools/sqlite builds.
build/core_test_newer: build/core_test build/sqlite3.o
	$(CC) $(STRICT) -O1 -g -Isrc $(CORE) $(CORE_SPECS) build/sqlite3.o -o $@ -lcmocka -lm

# The extension alone, without Lua.
extension: build/outbox_sqlite.so

build/outbox_sqlite.so: $(EXTENSION) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O2 -fPIC -shared -DOUTBOX_EXTENSION $(EXTENSION) -o $@

# All of it again, with counts of the lines that run. The counts are beside the object files.
build/coverage/%.o: %.c $(HEADERS) $(wildcard src/lua/*.h spec/core/*.h)
	@mkdir -p $(@D)
	$(CC) $(STRICT) $(COVERAGE) -Isrc $(LUA_INCLUDES) -c $< -o $@

build/coverage/core_test: $(call COVERED,$(CORE) $(CORE_SPECS))
	$(CC) --coverage $^ -o $@ -lcmocka -lsqlite3 -lm

build/coverage/lib/lua/5.4/outbox/core.so: $(call COVERED,$(CORE) $(filter %.c,$(SHIM)))
	@mkdir -p $(@D)
	$(CC) --coverage -shared $^ -o $@ -lsqlite3 -lm

# The command. Its specs run it from other directories too.
build/coverage/bin/outbox: Makefile
	@mkdir -p $(@D)
	@printf '%s\n' '#!/bin/sh' 'root=; [ -d lua/outbox ] || root=$(CURDIR)/' \
	  'export LUA_PATH="$${root}lua/?.lua;;"' \
	  'export LUA_CPATH="$${root}build/coverage/lib/lua/5.4/?.so;$${root}build/?.so;;"' \
	  'exec $(LUA) "$${root}bin/outbox" "$$@"' >$@ && chmod +x $@

build/coverage/lib/lua/5.4/outbox_sqlite.so: $(EXTENSION) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(STRICT) $(COVERAGE) -shared -DOUTBOX_EXTENSION $(EXTENSION) -o $@

# The fuzz targets: fuzz builds them with spec/fuzz/driver.c, libfuzzer with libFuzzer. The target
# values contains the shim.
FUZZ = build/fuzz_values build/fuzz_operations build/fuzz_damage
fuzz: $(FUZZ)
libfuzzer: $(FUZZ:build/fuzz_%=build/libfuzzer_%)

FUZZED = $(STRICT) $(SANITIZE) -Isrc $(LUA_INCLUDES) $< $(filter spec/fuzz/model.c,$^) $(CORE) \
  $(if $(findstring values,$@),$(filter %.c,$(SHIM))) -o $@ -llua5.4 -lsqlite3 -lm

build/fuzz_operations build/libfuzzer_operations: spec/fuzz/model.c spec/fuzz/model.h

build/fuzz_%: spec/fuzz/%.c spec/fuzz/driver.c spec/fuzz/fuzz.h $(CORE) $(HEADERS) $(SHIM)
	@mkdir -p $(@D)
	$(CC) spec/fuzz/driver.c $(FUZZED)

build/libfuzzer_%: spec/fuzz/%.c spec/fuzz/fuzz.h $(CORE) $(HEADERS) $(SHIM)
	@mkdir -p $(@D)
	clang -fsanitize=fuzzer $(FUZZED)

# The programs and modules that the specs need besides the rock.
support: build/engines.so build/process.so build/rabbitmq.so build/slow_disk.so build/faults.so \
  build/cut.so build/host build/kafka build/starved

# Modules for the specs: processes, which Lua does not have, a slow disk, connections that are cut.
build/%.so: spec/support/%.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g -fPIC -shared $(LUA_INCLUDES) $< -o $@

build/rabbitmq.so: spec/support/rabbitmq.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g -fPIC -shared $(LUA_INCLUDES) $< -o $@ -lrabbitmq

build/engines.so: src/engine.h src/outbox.h

build/faults.so: $(addprefix spec/,support/faults.c core/faults.c core/wrapper.c core/faults.h core/wrapper.h)
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g -fPIC -shared $(LUA_INCLUDES) $(filter %.c,$^) -o $@ -lsqlite3

# Runs Lua code while allocations fail.
build/starved: spec/support/starved.c spec/core/allocations.c spec/core/allocations.h
	@mkdir -p $(@D)
	$(CC) $(STRICT) $(SANITIZE) $(LUA_INCLUDES) $(filter %.c,$^) -o $@ -llua5.4 -lsqlite3

# Also for the specs: a program with its own Lua states and connections.
build/host: spec/support/host.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g $(LUA_INCLUDES) $< -o $@ -llua5.4 -lsqlite3 -lpthread

# A cluster for the specs of Kafka.
build/kafka: spec/support/kafka.c
	@mkdir -p $(@D)
	$(CC) $(STRICT) -O1 -g $< -o $@ -lrdkafka

lint-lua:
	luacheck -q . tools/coverage tools/floors tools/links tools/loops
	tools/loops $(LUA_FILES) bin/outbox

# The floors of the house: see docs/inside.md.
lint-floors: $(patsubst %.c,build/floors/%.o,$(filter-out %/extension.c,$(shell find src -name '*.c'))) \
  $(EXTENSION:%.c=build/floors/extension/%.o)
	tools/floors

build/floors/extension/%.o: %.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) -std=c11 -O0 -DOUTBOX_EXTENSION -MD -c $< -o $@

build/floors/%.o: %.c $(HEADERS) $(wildcard src/lua/*.h src/postgres/*.h)
	@mkdir -p $(@D)
	$(CC) -std=c11 -O0 -MD $(LUA_INCLUDES) $(addprefix -I,$(PQ_INCDIR)) -c $< -o $@

lint-format:
	clang-format --dry-run -Werror $(C_FILES)
	@! LC_ALL=C.UTF-8 grep -nE '.{101}' $(C_FILES) $(LUA_FILES)

lint-c:
	cppcheck -q --std=c11 --enable=warning,portability,performance --inline-suppr \
	  --suppress=missingIncludeSystem --error-exitcode=1 -Isrc src bench

format:
	clang-format -i $(C_FILES)

clean:
	rm -rf build lua_modules outbox src/*.o src/*/*.o

.PHONY: build brokers postgres rock extension support fuzz libfuzzer docs demo demo-postgres test torture coverage bench bench-bindings \
  bench-copies bench-lanes bench-postgres bench-processor bench-publishers bench-relay bench-wake lint-lua lint-floors lint-format lint-c format clean
