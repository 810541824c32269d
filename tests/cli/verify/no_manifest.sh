# SPDX-License-Identifier: Apache-2.0
# The one case beside slots.bin that is an error, not a finding.
moe-convert convert fx/olmoe out --ep 2 --quiet
rm out/manifest.json
moe-convert verify out --json
