"""Runs one instruction that a Cortex-A72 lacks, LDADD of ARMv8.1's atomics (LSE): 40 + 2, both printed."""

import ctypes
import mmap

LDADD_W1_W0_X0 = 0xB8210000
RET = 0xD65F03C0

code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"".join(word.to_bytes(4, "little") for word in (LDADD_W1_W0_X0, RET)))
add = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
value = ctypes.c_int(40)
before = add(ctypes.addressof(value), 2)
print(before, value.value)
