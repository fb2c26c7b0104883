# Parsed by nix-instantiate(1), and not built by Nix: see CONTRIBUTING.md, Packages of
# other distributions.
{
  lib,
  buildGoModule,
}:

buildGoModule rec {
  pname = "oci-mainpid-hook";
  version = "1.0.0";
  src = lib.cleanSource ../..;

  # Nix prints the right one.
  vendorHash = lib.fakeHash;
  env.CGO_ENABLED = 0;

  # The Makefile knows which programs and which flags.
  buildPhase = ''
    runHook preBuild
    make VERSION=${version} build man completions
    runHook postBuild
  '';
  installPhase = ''
    runHook preInstall
    make VERSION=${version} PREFIX=$out install
    runHook postInstall
  '';

  meta = {
    description = "Full system services of rootless podman containers";
    license = with lib.licenses; [
      asl20
      bsd2
      bsd3
      mit
    ];
    platforms = lib.platforms.linux;
    mainProgram = "oci-mainpid";
  };
}
