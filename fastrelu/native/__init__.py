"""From kernel sources to callable machine code: the host, the compiler, the cache of objects, the linker."""
