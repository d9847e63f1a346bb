read -r c
i=0
while read -r l; do
    e=$(eval "$l" 2>&1 </dev/null)
    printf '%s\n%s %s %s\n' "$e" "$c" $i $?
    i=$((i + 1))
done
