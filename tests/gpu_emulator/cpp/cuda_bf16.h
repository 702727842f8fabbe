// `__nv_bfloat16` lives in half.h, which cuda_on_cpu.h puts before every kernel text.
