package quadlet

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/unitfile"
)

// corpusKeys are the keys of podman-systemd.unit(5) by section. The corpus has
// each of them.
var corpusKeys = map[string]string{
	"Container": `AddCapability AddDevice AddHost Annotation AppArmor AutoUpdate CgroupsMode ContainerName
		ContainersConfModule DNS DNSOption DNSSearch DropCapability Entrypoint Environment EnvironmentFile
		EnvironmentHost Exec ExposeHostPort GIDMap GlobalArgs Group GroupAdd HealthCmd HealthInterval
		HealthLogDestination HealthMaxLogCount HealthMaxLogSize HealthOnFailure HealthRetries HealthStartPeriod
		HealthStartupCmd HealthStartupInterval HealthStartupRetries HealthStartupSuccess HealthStartupTimeout
		HealthTimeout HostName HttpProxy Image IP IP6 Label LogDriver LogOpt Mask Memory Mount Network NetworkAlias
		NoNewPrivileges Notify PidsLimit Pod PodmanArgs PublishPort Pull ReadOnly ReadOnlyTmpfs ReloadCmd
		ReloadSignal RemapGid RemapUid RemapUidSize RemapUsers Retry RetryDelay Rootfs RunInit SeccompProfile Secret
		SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel SecurityLabelNested SecurityLabelType
		ServiceName ShmSize StartWithPod StopSignal StopTimeout SubGIDMap SubUIDMap Sysctl Timezone Tmpfs UIDMap
		Ulimit Unmask User UserNS VolatileTmp Volume WorkingDir`,
	"Pod": `AddHost ContainersConfModule DNS DNSOption DNSSearch ExitPolicy GIDMap GlobalArgs HostName IP IP6 Label
		Network NetworkAlias PodmanArgs PodName PublishPort RemapGid RemapUid RemapUidSize RemapUsers ServiceName
		ShmSize StopTimeout SubGIDMap SubUIDMap UIDMap UserNS Volume`,
	"Kube": `AutoUpdate ConfigMap ContainersConfModule ExitCodePropagation GlobalArgs KubeDownForce LogDriver LogOpt
		Network PodmanArgs PublishPort RemapGid RemapUid RemapUidSize RemapUsers ServiceName SetWorkingDirectory
		UserNS Yaml`,
	"Network": `ContainersConfModule DisableDNS DNS Driver Gateway GlobalArgs InterfaceName Internal IPAMDriver IPRange
		IPv6 Label NetworkDeleteOnStop NetworkName Options PodmanArgs ServiceName Subnet`,
	"Volume": `ContainersConfModule Copy Device Driver GlobalArgs Group Image Label Options PodmanArgs ServiceName Type
		User VolumeName`,
	"Build": `Annotation Arch AuthFile BuildArg ContainersConfModule DNS DNSOption DNSSearch Environment File ForceRM
		GlobalArgs GroupAdd IgnoreFile ImageTag Label Network PodmanArgs Pull Retry RetryDelay Secret ServiceName
		SetWorkingDirectory Target TLSVerify Variant Volume`,
	"Image": `AllTags Arch AuthFile CertDir ContainersConfModule Creds DecryptionKey GlobalArgs Image ImageTag OS
		PodmanArgs Policy Retry RetryDelay ServiceName TLSVerify Variant`,
	"Artifact": `Artifact AuthFile CertDir ContainersConfModule Creds DecryptionKey GlobalArgs PodmanArgs Quiet Retry
		RetryDelay ServiceName TLSVerify`,
	"Quadlet": "DefaultDependencies",
	section:   "Cgroup",
}

// corpusFiles returns the text of the Quadlet files by name.
func corpusFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !IsQuadlet(path) || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[filepath.Base(path)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCorpusCoversEveryKey(t *testing.T) {
	seen := map[string]bool{}
	files := corpusFiles(t, "testdata/corpus")
	for name, text := range files {
		u, err := unitfile.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, a := range u.Assignments {
			seen[a.Section+"."+a.Key] = true
		}
	}
	for section, keys := range corpusKeys {
		for _, key := range strings.Fields(keys) {
			if !seen[section+"."+key] {
				t.Errorf("no file has %s= in [%s]", key, section)
			}
		}
	}
	if len(files) < 150 {
		t.Errorf("%d files only", len(files))
	}
}
