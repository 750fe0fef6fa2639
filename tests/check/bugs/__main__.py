from bugs import page

page.write()
