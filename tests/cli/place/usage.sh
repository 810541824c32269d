# SPDX-License-Identifier: Apache-2.0
moe-convert place out
moe-convert place out two --out three --placement p.json
moe-convert place fx/mixtral --placement p.json
