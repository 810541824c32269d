# SPDX-License-Identifier: Apache-2.0
mkdir src
cp fx/mixtral/model* src
moe-convert inspect src
