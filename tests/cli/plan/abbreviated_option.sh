# SPDX-License-Identifier: Apache-2.0
# An abbreviation would change its meaning with the next option.
moe-convert plan fx/mixtral --ep 2 --redun 4
