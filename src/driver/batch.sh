[ -z "$2" ] || ! command -v python3 >/dev/null 2>&1 || exec python3 -IBS -c "$2" "$1"
eval "$1"
read -r c
i=0
while read -r l; do
    e=$(eval "$l" 2>&1 </dev/null)
    printf '%s\n%s %s %s\n' "$e" "$c" $i $?
    i=$((i + 1))
done
