# bash completion for coracle: the flags are those that the binary itself lists.
_coracle() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
	if [ "$COMP_CWORD" = 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W 'daemon version --version --help' -- "$cur")
		return
	fi
	[ "${COMP_WORDS[1]}" = daemon ] || return
	case $prev in
	--config-file | --data-root | --exec-root | --pidfile | -p | --seccomp-profile)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		;;
	-l | --log-level) mapfile -t COMPREPLY < <(compgen -W 'debug info warn error fatal' -- "$cur") ;;
	-H | --host) mapfile -t COMPREPLY < <(compgen -W 'unix:// tcp:// fd://' -- "$cur") ;;
	-G | --group) mapfile -t COMPREPLY < <(compgen -g -- "$cur") ;;
	*) mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" daemon --help 2>/dev/null | grep -o -- '--[a-z0-9-]*')" -- "$cur") ;;
	esac
}
complete -F _coracle coracle
