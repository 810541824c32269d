# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/mixtral --ep 2 --report sarif=absent/x --quiet
