# SPDX-License-Identifier: Apache-2.0
mkdir m && echo x >m/x
cp fx/../signatures/p256.pub .
moe-convert sign m --key p256.pub --json --quiet
