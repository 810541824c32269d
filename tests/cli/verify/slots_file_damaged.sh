# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
printf X | dd of=out/slots.bin bs=1 seek=200 conv=notrunc status=none
moe-convert verify out --quiet
