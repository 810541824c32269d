# SPDX-License-Identifier: Apache-2.0
mkdir m && echo x >m/x
moe-convert sign m --key absent.pem
