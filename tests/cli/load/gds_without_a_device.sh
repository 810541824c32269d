# SPDX-License-Identifier: Apache-2.0
moe-convert load fx/mixtral --ep 2 --gds on
