read -r mark
temporary=$(cat)
sessions=' '
left=1
i=0
while [ $i -lt 40 ]; do
    i=$((i + 1))
    found=
    fresh=
    for p in /proc/[0-9]*; do
        p=${p#/proc/}
        [ "$p" -gt 1 ] && [ "$p" -ne $$ ] && read -r stat 2>/dev/null <"/proc/$p/stat" || continue
        set -- ${stat##*) }
        [ "$1" != Z ] && [ "$1" != X ] && [ "$4" != "$$" ] || continue
        case $sessions in
        *" $4 "*) ;;
        *)
            cat "/proc/$p/cmdline" "/proc/$p/environ" 2>/dev/null | grep -qF -e "$mark" || continue
            [ "$4" -le 1 ] || sessions="$sessions$4 "
            ;;
        esac
        found="$found $p"
        [ "$1" = T ] || { fresh=1; kill -STOP "$p" 2>/dev/null; }
    done
    [ -n "$found" ] || { left=; break; }
    [ -n "$fresh" ] && [ $i -lt 20 ] || kill -9 $found 2>/dev/null
done
[ -z "$temporary" ] || rm -f -- "$temporary"
if [ -n "$left" ]; then printf left; else printf gone; fi
