# Sourced by the scripts that make containers. Each container is recorded by its id as soon
# as it is there, and removed by that id: a container of the user's may bear any name.

# Tells this machine, and this process namespace, from others that share its engine.
containers_host() {
    echo "$(cut -c1-8 /proc/sys/kernel/random/boot_id)-$(readlink /proc/self/ns/pid | tr -dc 0-9)"
}

# create_container LIST OWNER [option...] IMAGE [command...]: makes one for the process OWNER, and prints its id.
create_container() {
    local list="$1" owner="$2" id
    shift 2
    id="$(docker create --label "run.owner=$(containers_host).$owner" "$@" </dev/null)" || return
    echo "$id" >>"$list"
    echo "$id"
}

# start_container LIST OWNER [option...] IMAGE [command...]: likewise, and starts it.
start_container() {
    local id
    id="$(create_container "$@")" && docker start "$id" >/dev/null </dev/null
}

# remove_containers LIST: removes those that are recorded there, with their volumes.
remove_containers() {
    local ids
    [ -s "$1" ] || return 0
    mapfile -t ids < <(grep -Ex '[0-9a-f]{64}' "$1")
    [ "${#ids[@]}" = 0 ] || timeout 60 docker rm -f -v "${ids[@]}" >/dev/null 2>&1 </dev/null || true
}

# Removes the containers of this machine's runs that have ended without removing them.
remove_leftover_containers() {
    local id owner host
    host="$(containers_host)"
    docker ps -a --filter label=run.owner --format '{{.ID}} {{.Label "run.owner"}}' | while read -r id owner; do
        case $owner in
        "$host".*) [ -d "/proc/${owner##*.}" ] || docker rm -f -v "$id" >/dev/null 2>&1 </dev/null || true ;;
        esac
    done
}
