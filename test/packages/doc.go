// Package packages tests what people install: that packaging/package.sh builds the same bytes twice, that lintian and rpmlint have
// nothing to say, that the unit is as closed as it claims; and, in a virtual machine with systemd, that the commands of the README
// install a running agent that profiles containers and services, and that upgrade, downgrade, remove and purge do what they should, with apt and
// with rpm.
//
// Only tests, in two halves: tag vm is the half on this machine (root; lane packages of test/run.sh), which builds and boots; tag
// guest is the half inside. Nothing else imports it.
package packages
