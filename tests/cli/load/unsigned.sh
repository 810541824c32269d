# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --ep 2 --quiet
moe-convert load out --rank 0 --require-signature nobody.pem
