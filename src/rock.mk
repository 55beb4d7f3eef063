# Installs a rock that is one module in C. The rockspec sets the variables. luarocks could build it
# without this file, but would then install the whole folder lua/ as a part of the rock.

install:
	mkdir -p $(dir $(MODULE))
	$(CC) $(CFLAGS) -I$(LUA_INCDIR) $(INCLUDES) $(SOURCES) $(LIBFLAG) $(LIBRARIES) -o $(MODULE)

.PHONY: install
