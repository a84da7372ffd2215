#!/bin/sh
# Creates a certificate authority and a certificate for each proxy, in folders of these names in FOLDER:
#   certificates.sh FOLDER NAME...               creates missing files and renews the certificates of all proxies
#   certificates.sh --trust-new FOLDER NAME...   adds an authority that is trusted, but not used yet: first step of a change
#   certificates.sh --trust-only FOLDER NAME...  removes all authorities but the newest: last step, after a renewal
# FOLDER/authority contains the keys of the authorities. Each proxy gets only its own folder, with identity.pem (its certificate and
# key), ca.pem, and the files through which Envoy watches both. DAYS is the lifetime of a certificate (default: 1), AT the path at
# which a proxy sees its folder (default: /etc/sluice), and OWNER the user who may read it (default: 1337).
set -eu
umask 077

step=renew
case $1 in --*) step=${1#--} && shift ;; esac
folder=$1
shift
at=${AT-/etc/sluice}
owner=${OWNER-1337}
authority=$folder/authority
mkdir -p "$authority"
cd "$authority"

new_authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/O=sluice.example/CN=$1" \
        -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign -keyout "$1.key" -out "$1.crt"
    echo "$1" >newest
}

# Replaces a file by renaming, which Envoy notices, so that Envoy never reads a partial file.
install_file() {
    chown "$owner" "$1"
    chmod 0400 "$1"
    mv -f "$1" "$2"
}

[ -e newest ] || new_authority "$(date +%s)"
case $step in
    renew) ;;
    trust-new) sleep 1 && used=$(cat newest) && new_authority "$(date +%s)" && mv newest next && echo "$used" >newest ;;
    trust-only) for file in *.crt; do [ "$file" = "$(cat newest).crt" ] || rm -f "$file" "${file%.crt}.key"; done ;;
    *) echo "certificates.sh: unknown step --$step, expected --trust-new or --trust-only" >&2 && exit 2 ;;
esac
if [ $step = renew ] && [ -e next ]; then mv next newest; fi
newest=$(cat newest)

for name in "$@"; do
    own=$folder/$name
    seen=${at:-$own}
    mkdir -p "$own"
    cat ./*.crt >"$own/new"
    install_file "$own/new" "$own/ca.pem"
    if [ $step = renew ]; then
        printf '%s\n' "subjectAltName=critical,URI:spiffe://sluice.example/$name" basicConstraints=critical,CA:false \
            keyUsage=critical,digitalSignature extendedKeyUsage=clientAuth,serverAuth >extensions
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj / -keyout key -out request
        openssl x509 -req -in request -CA "$newest.crt" -CAkey "$newest.key" -set_serial "0x$(openssl rand -hex 16)" \
            -days "${DAYS-1}" -extfile extensions -out certificate
        cat certificate key >"$own/new"
        rm -f certificate key request extensions
        install_file "$own/new" "$own/identity.pem"
    fi
    cat >"$own/new" <<END
resources:
  - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
    name: identity
    tls_certificate:
      certificate_chain: { filename: $seen/identity.pem }
      private_key: { filename: $seen/identity.pem }
      watched_directory: { path: $seen }
END
    install_file "$own/new" "$own/identity.yaml"
    cat >"$own/new" <<END
resources:
  - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
    name: trust
    validation_context:
      trusted_ca: { filename: $seen/ca.pem }
      watched_directory: { path: $seen }
END
    install_file "$own/new" "$own/trust.yaml"
    chown "$owner" "$own"
    chmod 0500 "$own"
done
