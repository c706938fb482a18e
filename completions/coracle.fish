# fish completion for coracle: the flags are those that the binary itself lists.
complete -c coracle -f
complete -c coracle -n __fish_use_subcommand -a 'daemon version'
complete -c coracle -n __fish_use_subcommand -l version -d 'Print the version'
complete -c coracle -n '__fish_seen_subcommand_from daemon' -a '(coracle daemon --help 2>/dev/null | string match -r -- "--[a-z0-9-]+")'
for flag in config-file data-root exec-root pidfile seccomp-profile
    complete -c coracle -n '__fish_seen_subcommand_from daemon' -l $flag -r -F
end
