read -r tag
read -r outer
read -r inner
directory=$(cat && echo /)
directory=${directory%/}
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
            # Children inherit the tag; an argument that quotes it means nothing.
            tr '\0' '\n' 2>/dev/null <"/proc/$p/environ" | grep -q "^XDG_SESSION_ID=$tag" || continue
            [ "$4" -le 1 ] || sessions="$sessions$4 "
            ;;
        esac
        found="$found $p"
        [ "$1" = T ] || { fresh=1; kill -STOP "$p" 2>/dev/null; }
    done
    [ -n "$found" ] || { left=; break; }
    [ -n "$fresh" ] && [ $i -lt 20 ] || kill -9 $found 2>/dev/null
done
# Removes what was staged; only this user can have put the inner name in a directory of its own.
clean() {
    cd -P -- "$directory" && [ "$PWD" = "$directory" ] && [ -O "./$outer" ] || return
    if [ -d "./$outer" ]; then
        cd -P "./$outer" && [ -O . ] && case $(stat -c %a .) in *700) ;; *) return ;; esac
        rm -rf "./$inner"
        cd -P ..
        rmdir "./$outer"
    elif [ -O . ] && case $(stat -c %a .) in *[2367]? | *[2367]) false ;; esac then
        rm -f "./$outer"
    fi
}
[ -z "$outer" ] || clean >/dev/null 2>&1
if [ -n "$left" ]; then printf left; else printf gone; fi
