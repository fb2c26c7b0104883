package main

import "strings"

const (
	containerFile = "/etc/containers/systemd/web.container"
	unitFile      = "/etc/systemd/system/web.service"
)

// unit is as much as an administrator would write.
func (s *stage) unit() string {
	return strings.ReplaceAll(`[Unit]
Description=Web server
Wants=user@UID.service
After=user@UID.service

[Service]
Type=notify
NotifyAccess=all
User=web
Environment=XDG_RUNTIME_DIR=/run/user/UID
ExecStart=podman run -d --replace --name=web --init --sdnotify=conmon \
  --cgroups=no-conmon localhost/busybox httpd -f -p 8080
ExecStop=podman stop web
`, "UID", s.uid)
}

// webFile is a Quadlet file.
const webFile = `[Unit]
Description=Web server

[Container]
Image=localhost/busybox
ContainerName=web
RunInit=yes
Exec=httpd -f -p 8080

[Service]
User=web
`

func quadlet(s *stage) {
	s.say("A container file for Quadlet, podman-systemd.unit(5). Only the last line is for this project: without it the container is root's.")
	s.write(containerFile, webFile)
	s.run("systemctl daemon-reload")
	s.run("systemctl start web")
	s.runCut("systemctl status --lines=0 web")
	pid := s.mainPIDIsConmon()
	processes := s.run("ps --pid " + pid + " --ppid " + pid + " -o user,pid,ppid,comm")
	s.claim(strings.Count(processes, "\nweb ") == 2, "conmon and the container's first process are user web's")
	s.serves()
	s.run("systemctl stop web")
	s.claim(s.nothingRuns(), "stopping the service stops the container")

	// The next scenes have a unit of that name.
	s.quiet("rm " + containerFile + " && systemctl daemon-reload")
	s.asAfterBoot()
}

func before(s *stage) {
	s.say("podman starts the container and exits. What stays to watch over it is conmon, so podman tells systemd that conmon is the main process now.")
	s.write(unitFile, s.unit())

	s.say("The first start after a boot. Some of what systemd has to say about it is logged at level debug only.")
	s.run("systemctl daemon-reload")
	s.run("systemctl log-level debug")
	_, status := s.show("systemctl start web", wrapped)
	line := s.journal("user@"+s.uid, "reception only permitted")
	s.claim(status != 0 && strings.Contains(line, "reception only permitted for main PID"), "podman has left the unit's control group, so what it tells systemd does not count")
	s.runCut("systemctl status --lines=0 web")
	s.claim(s.property("web", "ActiveState") == "failed", "the unit has failed")
	s.claim(!s.nothingRuns(), "but the container runs: an orphan that no unit owns")

	s.say("The orphan is removed. The second start goes differently, because the first one has left a user namespace to join:")
	s.runWeb("podman rm -f web")
	s.run("systemctl start web")
	line = s.journal("web", "New main PID")
	s.claim(strings.HasSuffix(line, "does not belong to service, refusing."), "systemd refuses conmon, which is not in the unit's control group")
	s.waitFor("web", "ActiveState", "inactive")
	s.run("systemctl log-level info")
	s.runCut("systemctl status --lines=0 web")
	s.claim(s.nothingRuns(), "so for systemd the service is over, and its container is stopped again")
}

func after(s *stage) {
	s.say("The processes stay where they were, in the user's control groups (--cgroup=user). But now a process of root's tells systemd which of them is conmon, after it has checked that.")
	s.run("oci-mainpid generate --user=web --cgroup=user " + unitFile)
	s.run("cat " + unitFile + ".d/50-oci-mainpid.conf")
	s.run("systemctl daemon-reload")
	s.run("systemctl log-level debug")
	s.run("systemctl start web")
	s.run("systemctl log-level info")
	s.runCut("systemctl status --lines=0 web")

	line := s.journal("web", "New main PID")
	pid := s.property("web", "MainPID")
	s.claim(strings.HasPrefix(line, "web.service: New main PID "+pid+" ") && strings.Contains(line, "but we'll accept it as the request to change it came from a privileged process"),
		"systemd accepts conmon, because root has sent its PID")
	s.mainPIDIsConmon()
	group := s.run("grep ^0:: /proc/" + pid + "/cgroup")
	s.claim(strings.HasPrefix(group, "0::/user.slice/"), "although it lives outside of the unit's control group")
	s.serves()
}

func then(s *stage) {
	s.say("Not systemd, the user kills the container.")
	s.runWeb("podman kill web")
	s.waitFor("web", "ActiveState", "failed")
	shown := s.run("systemctl show --property=ActiveState,Result,ExecMainStatus web")
	s.journal("web", "Main process exited")
	s.claim(strings.Contains(shown, "Result=exit-code") && strings.Contains(shown, "ExecMainStatus=137"),
		"the unit has failed with the container's exit status: 128 + 9, SIGKILL")
	s.claim(s.nothingRuns(), "and nothing is left of it")
}

func reload(s *stage) {
	s.say("Two lines more: systemctl reload puts another container in the place of the one that runs. The unit stays active, and the main PID moves once the new container runs.")
	s.quiet("rm -r " + unitFile + "* && systemctl reset-failed web")
	s.write(containerFile, webFile+"\n[X-MainPID]\nReload=beside\n")
	s.run("systemctl daemon-reload")
	s.run("systemctl start web")
	before, start := s.mainPIDIsConmon(), s.run("systemctl show --property=InvocationID web")
	s.run("systemctl reload web")
	s.claim(s.mainPIDIsConmon() != before, "of another container than before")
	s.claim(s.run("systemctl show --property=InvocationID web") == start, "and for systemd it is the same start of the unit")
	s.serves()
}

// journal shows and returns the latest line of a unit's that has the text.
func (s *stage) journal(unit, text string) string {
	s.quiet("journalctl --sync")
	return s.run("journalctl -u " + unit + " -n 1 -o cat --grep '" + text + "'")
}

// mainPIDIsConmon compares what systemd and podman say.
func (s *stage) mainPIDIsConmon() (pid string) {
	pid = s.run("systemctl show --property=MainPID --value web")
	conmon := s.runWeb("podman inspect -f '{{.State.ConmonPid}}' web")
	s.claim(pid != "0" && pid == conmon, "its main process is the container's conmon")
	return pid
}

// serves uses the container as its user.
func (s *stage) serves() {
	answer := s.runWeb("podman exec web wget -qO- http://localhost:8080/etc/hostname")
	s.claim(answer != "", "the user works with the container as ever, and it serves")
}

// nothingRuns shows the running containers of user web, below a heading, and
// reports whether there are none.
func (s *stage) nothingRuns() bool {
	list := s.runWeb("podman ps --format 'table {{.Names}} {{.Image}} {{.Status}}'")
	return !strings.Contains(list, "\n")
}
