# SPDX-License-Identifier: Apache-2.0
# To try again does not help: 3, not 4.
moe-convert plan fx/mixtral --ep 2 --placement absent.json
