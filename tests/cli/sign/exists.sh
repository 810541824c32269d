# SPDX-License-Identifier: Apache-2.0
command -v openssl >/dev/null || exit 77
openssl ecparam -name prime256v1 -genkey -noout -out key.pem
mkdir m && echo x >m/x
moe-convert sign m --key key.pem --quiet || exit
moe-convert sign m --key key.pem
