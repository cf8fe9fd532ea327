#include "src/cli/completion.h"

#include <fmt/format.h>

#include "src/cli/options.h"

namespace postern::cli {
namespace {

constexpr std::string_view kVerbs = "run ctl doctor completion --version --help";

std::string Words(std::span<const Option> options, bool files_only) {
  std::string words;
  for (const Option& option : options) {
    if (files_only && !option.file) continue;
    words += fmt::format("{}--{}", words.empty() ? "" : files_only ? "|" : " ", option.name);
  }
  return words;
}

// zsh reads bash's functions through bashcompinit.
std::string Bash() {
  return fmt::format(R"(_postern() {{
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
    doctor) COMPREPLY=($(compgen -W "{}" -- "$word")) ;;
    completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$word")) ;;
  esac
}}
complete -o default -F _postern postern
)",
                     kVerbs, Words(RunOptions(), true), Words(RunOptions(), false), CtlCommands(),
                     Words(CtlOptions(), false), Words(DoctorOptions(), false));
}

std::string Fish() {
  std::string text =
      fmt::format("complete -c postern -f -n __fish_use_subcommand -a '{}'\n", kVerbs);
  const auto add = [&](std::span<const Option> options, std::string_view verb) {
    for (const Option& option : options) {
      const std::string_view line = option.help.substr(0, option.help.find('\n'));
      std::string help;
      for (const char c : line) help += c == '\'' ? std::string("\\'") : std::string(1, c);
      text += fmt::format(
          "complete -c postern {} -n '__fish_seen_subcommand_from {}' -l {}{} -d '{}'\n",
          option.file ? "-F" : "-f", verb, option.name, option.argument.empty() ? "" : " -r", help);
    }
  };
  add(RunOptions(), "run");
  add(CtlOptions(), "ctl");
  text += fmt::format("complete -c postern -F -n '__fish_seen_subcommand_from ctl' -a '{}'\n",
                      CtlCommands());
  add(DoctorOptions(), "doctor");
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
