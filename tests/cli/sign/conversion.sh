# SPDX-License-Identifier: Apache-2.0
# Signed while it is converted, then again by another curve's key in a file of
# its own; and a conversion's file cannot be left out. provenance.json has not
# always the same length.
length() {
    sed 's/"bytes": [0-9]*/"bytes": 0/'
}
command -v openssl >/dev/null || exit 77
for curve in prime256v1 secp521r1; do
    openssl ecparam -name $curve -genkey -out $curve.pem # parameters first
    openssl ec -in $curve.pem -pubout -out $curve.pub 2>/dev/null
done
moe-convert convert fx/olmoe out --ep 2 --quiet --sign prime256v1.pem || exit
moe-convert verify-signature out --key prime256v1.pub --json >v || exit
length <v
moe-convert sign out --key secp521r1.pem --signature o.sig --json >s || exit
length <s
moe-convert verify-signature out --key secp521r1.pub --signature o.sig --quiet ||
    exit # model.sig was there already: it is signed too
moe-convert verify out --quiet || exit
moe-convert sign out --key secp521r1.pem --ignore slots.bin --force
