# Parsed by nix-instantiate(1), and not run on NixOS: see CONTRIBUTING.md, Packages of
# other distributions.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.virtualisation.oci-mainpid-hook;
  podman = config.virtualisation.podman.package;
in
{
  options.virtualisation.oci-mainpid-hook = {
    enable = lib.mkEnableOption "system services of rootless podman containers (User= in Quadlet files)";
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package oci-mainpid-hook.";
    };
  };

  config = lib.mkIf cfg.enable {
    virtualisation.podman.enable = true;
    # Without this, podman looks into /usr/share, which NixOS does not have.
    virtualisation.containers.containersConf.settings.engine.hooks_dir = [
      "${cfg.package}/share/containers/oci/hooks.d"
    ];

    # notify-mainpid takes /run/current-system/sw/bin/conmon for conmon, and that is
    # where this package puts it. It is the file that podman executes.
    environment.systemPackages = [
      cfg.package
      pkgs.conmon
    ];

    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    # systemd.packages takes units, and not what wants them.
    systemd.targets.local-fs.wants = [ "run-oci\\x2dmainpid.mount" ];
    systemd.generators = {
      oci-mainpid-generator = "${cfg.package}/lib/systemd/system-generators/oci-mainpid-generator";
      podman-system-generator = lib.mkDefault "${podman}/lib/systemd/system-generators/podman-system-generator";
    };

    # podman-pause runs podman, and podman runs newuidmap, which is setuid here only.
    systemd.services."oci-mainpid-pause@" = {
      overrideStrategy = "asDropin";
      path = [
        podman
        "/run/wrappers"
      ];
    };
  };
}
