// Package hooks checks the hook's configuration with podman's own reader.
package hooks

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containers/common/pkg/hooks"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const file = "oci-mainpid-hook.json"

// read reads the configuration as podman does, with the path changed to one
// that exists on this machine.
func read(t *testing.T) *hooks.Manager {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var contents map[string]any
	if err := json.Unmarshal(b, &contents); err != nil {
		t.Fatal(err)
	}
	hook := contents["hook"].(map[string]any)
	if path := hook["path"]; path != "/usr/libexec/oci/hooks.d/oci-mainpid-hook" {
		t.Errorf("path %v", path)
	}
	hook["path"] = "/proc/self/exe"
	if b, err = json.Marshal(contents); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
		t.Fatal(err)
	}
	manager, err := hooks.New(t.Context(), []string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return manager
}

func TestEveryContainerHasTheHook(t *testing.T) {
	manager := read(t)
	for name, annotations := range map[string]map[string]string{
		"no annotations": nil, "some": {"io.container.manager": "libpod"},
	} {
		config := &specs.Spec{Process: &specs.Process{Args: []string{"sh"}}}
		if _, err := manager.Hooks(config, annotations, false); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if config.Hooks == nil || len(config.Hooks.Poststart) != 1 {
			t.Fatalf("%s: hooks %+v", name, config.Hooks)
		}
		all := slices.Concat(config.Hooks.CreateRuntime, config.Hooks.CreateContainer, config.Hooks.StartContainer, config.Hooks.Poststop)
		if len(all) != 0 {
			t.Errorf("%s: in other stages too: %+v", name, all)
		}
		if hook := config.Hooks.Poststart[0]; hook.Timeout != nil || len(hook.Args) > 1 || !slices.Equal(hook.Env, []string{"GOMAXPROCS=1"}) {
			t.Errorf("%s: %+v", name, hook)
		}
	}
}
