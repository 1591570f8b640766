// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * pfnguard: a protected hypervisor under the kernel that loads it.
 *
 * Once it is loaded the module stays: the hypervisor cannot be asked to leave.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/firmware.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/platform_device.h>
#include <linux/reboot.h>
#include <linux/suspend.h>

#include "kmod.h"

/* What Kconfig says, where this is in the kernel's tree. */
#ifdef CONFIG_PFNGUARD_MANIFEST
#define MANIFEST	CONFIG_PFNGUARD_MANIFEST
#define UART		CONFIG_PFNGUARD_UART
#else
#define MANIFEST	"pfnguard/manifest.bin"
#define UART		0
#endif

static char *manifest = MANIFEST;
module_param(manifest, charp, 0444);
MODULE_PARM_DESC(manifest, "Platform-safety manifest, a file of the firmware directories");

static ulong uart = UART;
module_param(uart, ulong, 0444);
MODULE_PARM_DESC(uart, "Physical address of a PL011 that hears what goes wrong at EL2 (0: none)");

/*
 * An image of memory would lack what is the hypervisor's, and a kernel that is
 * restored from it would run without.
 */
static int refuse_hibernation(struct notifier_block *block, unsigned long event,
			      void *unused)
{
	if (event != PM_HIBERNATION_PREPARE && event != PM_RESTORE_PREPARE)
		return NOTIFY_DONE;
	pr_err("no hibernation: the hypervisor's memory cannot be saved\n");
	return notifier_from_errno(-EPERM);
}

static struct notifier_block pm_notifier = {
	.notifier_call = refuse_hibernation,
};

/*
 * The next kernel would neither get EL2 nor know which memory it has lost. All
 * that can be done at this point is to restart in another way.
 */
static int refuse_kexec(struct notifier_block *block, unsigned long event,
			void *command)
{
	if (event == SYS_RESTART && command && !strcmp(command, "kexec reboot")) {
		pr_emerg("no kexec: the hypervisor stays at EL2; restarting through firmware\n");
		emergency_restart();
	}
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = {
	.notifier_call = refuse_kexec,
};

/* Says which part is missing; the hypervisor, once launched, is there to stay. */
static void __init show(void)
{
	int ret = pfnguard_lend_arguments();

	if (!ret)
		ret = pfnguard_make_device();
	if (ret)
		pr_err("no /dev/pfnguard (%d): memory is protected, but no program can make a VM\n",
		       ret);
	else
		pfnguard_make_debugfs();
}

static int __init launch(const struct firmware *file)
{
	int ret = pfnguard_alloc_arguments();

	if (ret)
		return ret;
	/* Before the launch, which nothing that fails may follow. */
	ret = register_pm_notifier(&pm_notifier);
	if (ret)
		goto free;
	ret = pfnguard_launch(file->data, file->size, uart);
	if (!ret) {
		register_reboot_notifier(&reboot_notifier);
		show();
		return 0;
	}
	unregister_pm_notifier(&pm_notifier);
free:
	pfnguard_free_arguments();
	return ret;
}

static int __init pfnguard_init(void)
{
	const struct firmware *file;
	struct platform_device *device;
	int ret;

	device = platform_device_register_simple(KBUILD_MODNAME,
						 PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	ret = request_firmware_direct(&file, manifest, &device->dev);
	if (ret) {
		pr_err("cannot load the manifest %s (%d): put one into the firmware directories, or name it with manifest=\n",
		       manifest, ret);
		goto out;
	}
	ret = launch(file);
	release_firmware(file);
out:
	if (ret)
		platform_device_unregister(device);
	return ret;
}
/*
 * In vmlinux: after everything else that is built in (KVM, which may own EL2,
 * and drivers, whose memory is left where it is), before the first program. In
 * a module, the same as module_init().
 */
late_initcall_sync(pfnguard_init);

MODULE_DESCRIPTION("Protected hypervisor that guards memory types");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_FIRMWARE(MANIFEST);
