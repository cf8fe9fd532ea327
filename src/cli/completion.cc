#include "src/cli/completion.h"

#include <fmt/format.h>

#include "src/cli/options.h"

namespace postern::cli {
namespace {

constexpr std::string_view kVerbs = "run ctl vdev doctor bind unbind completion --version --help";

std::string Words(std::span<const Option> options, bool files_only) {
  std::string words;
  for (const Option& option : options) {
    if (files_only && !option.file) continue;
    words += fmt::format("{}--{}", words.empty() ? "" : files_only ? "|" : " ", option.name);
  }
  return words;
}

// PCI addresses contain colons, which split words in bash: the word is taken from the line, and
// what stands before its last colon is there already. Where colons do not split (zsh, or a user's
// own COMP_WORDBREAKS) the answer is whole.
constexpr std::string_view kBashDevices = R"sh(_postern_devices() {
  local line=${COMP_LINE:0:COMP_POINT} have=
  local whole=${line##*[ =]}
  COMPREPLY=($(compgen -W "$(ls /sys/bus/pci/devices 2>/dev/null)" -- "$whole"))
  case "$COMP_WORDBREAKS" in
    *:*) have=${whole%"${whole##*:}"}; COMPREPLY=("${COMPREPLY[@]#"$have"}") ;;
  esac
}
)sh";

// zsh reads bash's functions through bashcompinit.
std::string Bash() {
  return std::string(kBashDevices) +
         fmt::format(R"(_postern() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
    run)
      case "$before" in
        {}) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --transport) COMPREPLY=($(compgen -W "pci mmio" -- "$word")); return ;;
        --console|--serial) COMPREPLY=($(compgen -W "stdio pty file= socket= null off" -- "$word")); return ;;
        --log-level) COMPREPLY=($(compgen -W "trace debug info warn error off" -- "$word")); return ;;
        --rng|--pit) COMPREPLY=($(compgen -W "on off" -- "$word")); return ;;
      esac
      COMPREPLY=($(compgen -W "{}" -- "$word")) ;;
    ctl)
      if [ "$COMP_CWORD" -eq 2 ]; then COMPREPLY=($(compgen -f -- "$word")); return; fi
      if [ "$COMP_CWORD" -eq 3 ]; then COMPREPLY=($(compgen -W "{}" -- "$word")); return; fi
      COMPREPLY=($(compgen -W "{}" -- "$word")) ;;
    vdev)
      if [ "$COMP_CWORD" -eq 2 ]; then COMPREPLY=($(compgen -W "serve list" -- "$word")); return; fi
      case "$before" in
        {}) COMPREPLY=($(compgen -f -- "$word")); return ;;
        --log-level) COMPREPLY=($(compgen -W "trace debug info warn error off" -- "$word")); return ;;
      esac
      COMPREPLY=($(compgen -W "{}" -- "$word")) ;;
    doctor)
      local line=${{COMP_LINE:0:COMP_POINT}}
      local value=${{line##*--device[ =]}}
      case "$value" in
        "$line"|*" "*) COMPREPLY=($(compgen -W "{}" -- "$word")) ;;
        *) _postern_devices ;;
      esac ;;
    bind|unbind)
      case "$word" in
        -*) if [ "${{COMP_WORDS[1]}}" = bind ]; then
              COMPREPLY=($(compgen -W "{}" -- "$word"))
            else
              COMPREPLY=($(compgen -W "{}" -- "$word"))
            fi ;;
        *) _postern_devices ;;
      esac ;;
    completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$word")) ;;
  esac
}}
complete -o default -F _postern postern
)",
                     kVerbs, Words(RunOptions(), true), Words(RunOptions(), false), CtlCommands(),
                     Words(CtlOptions(), false), Words(VdevServeOptions(), true),
                     Words(VdevServeOptions(), false), Words(DoctorOptions(), false),
                     Words(BindOptions(), false), Words(UnbindOptions(), false));
}

constexpr std::string_view kFishDevices = "(command ls /sys/bus/pci/devices 2>/dev/null)";

std::string Fish() {
  std::string text =
      fmt::format("complete -c postern -f -n __fish_use_subcommand -a '{}'\n", kVerbs);
  const auto add = [&](std::span<const Option> options, std::string_view verb) {
    for (const Option& option : options) {
      const std::string_view line = option.help.substr(0, option.help.find('\n'));
      std::string help;
      for (const char c : line) help += c == '\'' ? std::string("\\'") : std::string(1, c);
      text += fmt::format(
          "complete -c postern {} -n '__fish_seen_subcommand_from {}' -l {}{}{} -d '{}'\n",
          option.file ? "-F" : "-f", verb, option.name, option.argument.empty() ? "" : " -r",
          option.device ? fmt::format(" -a '{}'", kFishDevices) : "", help);
    }
  };
  add(RunOptions(), "run");
  add(CtlOptions(), "ctl");
  text += fmt::format("complete -c postern -F -n '__fish_seen_subcommand_from ctl' -a '{}'\n",
                      CtlCommands());
  add(VdevServeOptions(), "vdev");
  text += "complete -c postern -f -n '__fish_seen_subcommand_from vdev' -a 'serve list'\n";
  add(DoctorOptions(), "doctor");
  add(BindOptions(), "bind");
  add(UnbindOptions(), "unbind");
  text +=
      fmt::format("complete -c postern -f -n '__fish_seen_subcommand_from bind unbind' -a '{}'\n",
                  kFishDevices);
  return text;
}

}  // namespace

Outcome<std::string> CompletionScript(std::string_view shell) {
  if (shell == "bash") return Bash();
  if (shell == "zsh") return "autoload -U +X bashcompinit && bashcompinit\n" + Bash();
  if (shell == "fish") return Fish();
  return ConfigFailure(fmt::format("no completion for shell '{}'", shell),
                       "postern completion bash|zsh|fish");
}

}  // namespace postern::cli
