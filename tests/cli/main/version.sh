# SPDX-License-Identifier: Apache-2.0
# Version and commit change with every release: the form is what is tested.
moe-convert --version | grep -cE '^moe-convert [0-9]+\.[0-9]+\.[0-9]+ \((git [0-9a-f]+(-dirty)?, )?format 1\)$'
